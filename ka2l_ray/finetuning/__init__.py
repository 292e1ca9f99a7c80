"""LoRA fine-tuning on (question, answer) rows, Ray- and DeepSpeed-free: what is trained on, in which order, with which loss."""
