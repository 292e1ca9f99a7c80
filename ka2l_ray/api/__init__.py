"""The core's face in Python: ``Uncertainty``, ``KnowledgeProbe`` and ``Learner``, without Ray and without a run directory."""
