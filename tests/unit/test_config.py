"""The configuration: defaults of the paper, presets, overrides, and faults that name the key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ka2l_ray.config import NOT_CONTENT, OF_THE_WHOLE_RUN, FinetuneConfig, RunConfig, SamplingConfig, Section
from ka2l_ray.config_files import dump, load_config, load_preset, preset_names, valid_keys, validate
from ka2l_ray.errors import UserError

LEAST: dict[str, Any] = {"model": {"path": "bundled:student"}, "pool": {"questions": "pool.jsonl"}}


def written(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def fault(overrides: list[str], path: Path | None = None) -> str:
    """The one-line message with which loading fails."""
    with pytest.raises(UserError) as error:
        load_config(path, overrides, values={"model.path": "m", "pool.questions": "p.jsonl"} if path is None else None)
    assert "\n" not in str(error.value)
    return str(error.value)


def sections(section: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    kinds = [f.annotation for f in section.model_fields.values()]
    inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [section, *(below for kind in inner for below in sections(kind))]


def test_the_paper_to_the_letter_is_a_preset() -> None:
    config = load_config(None, values={"preset": "ka2l-paper", "model.path": "m", "pool.questions": "p.jsonl"})
    assert (config.sampling.k, config.sampling.temperature, config.sampling.greedy_temperature) == (10, 1.0, 0.1)
    probe = config.probe
    assert (probe.kind, probe.hidden_width, probe.learning_rate, probe.epochs) == ("mlp", 14336, 1e-5, 20)
    assert (probe.standardize, probe.early_stopping, probe.class_weights, probe.calibration) == (False, False, "none", "none")
    assert (probe.target, probe.position, probe.batch_size) == ("label", "last_prompt_token", 32)
    assert (config.entropy.nli_model, config.entropy.policy, config.entropy.rule) == (
        "microsoft/deberta-large-mnli",
        "founder_last",
        "ka2l",
    )
    assert (config.entropy.abstentions, config.normalize) == ("known", "squad")
    assert (config.entropy.judge, config.entropy.equivalence) == ("nli", "strict")
    assert (config.finetune.epochs, config.finetune.replay_known, config.finetune.start) == (3, 0, "base")
    assert config.selection.strategy == "ka2l"
    assert validate({**load_preset("glm-4-9b-chat"), "pool": {"questions": "p"}}).entropy == config.entropy, (
        "Table 2 builds on it"
    )


def test_defaults_leave_the_paper_where_it_was_measured_to_fail() -> None:
    config = validate(LEAST)
    assert (config.probe.standardize, config.probe.early_stopping, config.probe.calibration) == (True, True, "auto")
    assert (config.entropy.rule, config.entropy.abstentions, config.finetune.replay_known) == ("auto", "unknown", 1)


@pytest.mark.parametrize("key", ["sampling.stop_when_decided", "entropy.label_only"])
def test_what_spares_answers_by_their_threshold_wants_a_rule_that_knows_it(key: str) -> None:
    assert f"{key.removeprefix('entropy.')} needs a threshold that is known beforehand" in fault([f"{key}=true"])
    assert "entropy.rule is auto; set entropy.rule=ka2l" in fault([f"{key}=true"])
    assert "leave" in fault([f"{key}=true", "entropy.rule=ka2l", "entropy.abstentions=drop"])
    assert "entropy.rule" not in fault([f"{key}=true", "entropy.rule=ka2l", "seed=x"])


@pytest.mark.parametrize("pattern", ["", "x*", "^", "(idk)?"])
def test_a_pattern_that_finds_the_empty_text_is_refused(pattern: str) -> None:
    wanted = f"entropy.abstention_patterns: '{pattern}' finds the empty text"
    assert wanted in fault([f"entropy.abstention_patterns=[default, '{pattern}']"])


@pytest.mark.parametrize("pattern", ["Default", "defaults", "defalt", "defualt", "defzult", " default"])
def test_a_pattern_that_is_nearly_default_is_refused(pattern: str) -> None:
    assert f"'{pattern}' is nearly 'default'" in fault([f"entropy.abstention_patterns=['{pattern}']"])
    given = validate(LEAST | {"entropy": {"abstention_patterns": ["default", "de facto", "fault"]}})
    assert given.entropy.abstention_patterns == ["default", "de facto", "fault"]


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
@pytest.mark.parametrize(
    "key",
    [
        "sampling.temperature",
        "finetune.learning_rate",
        "finetune.cpus",
        "engine.gpus",
        "engine.placement_timeout",
        "probe.learning_rate",
    ],
)
def test_numbers_are_finite(key: str, value: str) -> None:
    assert key in fault([f"{key}={value}"])


def test_an_output_has_a_name() -> None:
    assert "output: String should have at least 1 character" in fault(["output="])


def test_abstention_patterns_and_prompt_are_checked() -> None:
    assert "'(' is not a regular expression" in fault(["entropy.abstention_patterns=[default, '(']"])
    assert "set entropy.judge=llm" in fault(["entropy.abstention_prompt='{answer}?'"])
    llm = ["entropy.judge=llm", "entropy.llm_model=m"]
    assert "must hold {answer}" in fault([*llm, "entropy.abstention_prompt='{question}?'"])
    assert "and nothing else" in fault([*llm, "entropy.abstention_prompt='{answer} {a}?'"])


PATTERNS = ["(", "a{99999999999999}", "(" * 20_000]


@pytest.mark.parametrize("pattern", PATTERNS, ids=["bracket", "count", "depth"])
def test_patterns_that_cannot_be_compiled_are_refused(pattern: str) -> None:
    assert "is not a regular expression (" in fault([f"entropy.abstention_patterns=['{pattern}']"])
    assert "is no regular expression (" in fault(["evaluation.extract=regex", f"evaluation.extract_pattern='{pattern}'"])


@pytest.mark.parametrize("pattern", ["", " "])
def test_an_empty_pattern_to_extract_is_refused(pattern: str) -> None:
    assert "extract_pattern is empty" in fault(["evaluation.extract=regex", f"evaluation.extract_pattern='{pattern}'"])


@pytest.mark.parametrize("field", ["{a.foo}", "{a[x]}", "{answer.foo}", "{}", "{0}", "{a!r}", "{a:>9999999999}", "{b", "{other}"])
def test_prompts_of_a_judge_hold_their_fields_and_nothing_else_in_braces(field: str) -> None:
    llm = ["entropy.judge=llm", "entropy.llm_model=m"]
    assert "llm_prompt may hold" in fault([*llm, f"entropy.llm_prompt='{{question}} {{a}} {{b}} {field}'"])
    assert "abstention_prompt may hold" in fault([*llm, f"entropy.abstention_prompt='{{answer}} {field}'"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("probe.epoch", "probe.epochs"),
        ("sampling.temprature", "sampling.temperature"),
        ("finetune.lora_rnak", "finetune.lora_rank"),
        ("sead", "seed"),
        ("entropy.ruel", "entropy.rule"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    assert fault([f"{key}=5"]) == f"configuration: unknown key '{key}' (nearest: '{nearest}')"


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path / "run.yaml", {**LEAST, "probe": {"epoch": 5}})
    assert fault([], path) == f"{path}: unknown key 'probe.epoch' (nearest: 'probe.epochs')"


def test_a_key_like_no_other_is_just_unknown() -> None:
    assert fault(["zzzzqqqq=1"]) == "configuration: unknown key 'zzzzqqqq'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.k=1", "sampling.k: Input should be greater than or equal to 2 (given: 1)"),
        ("sampling.temperature=0", "sampling.temperature: Input should be greater than 0 (given: 0)"),
        ("entropy.quantile=1.0", "entropy.quantile: Input should be less than 1 (given: 1.0)"),
        ("selection.budget=0", "selection.budget: Input should be greater than or equal to 1 (given: 0)"),
        ("finetune.lora_dropout=1", "finetune.lora_dropout: Input should be less than 1 (given: 1)"),
        ("probe.kind=forest", "probe.kind: Input should be 'mlp' or 'linear' (given: 'forest')"),
        ("probe.epochs=many", "probe.epochs: Input should be a valid integer"),
        ("probe.layers=[]", "probe.layers: give 'all', or different layer numbers"),
        ("probe.layers=[1, 1]", "probe.layers: give 'all', or different layer numbers"),
        ("sampling.stop=['']", "sampling.stop.0: String should have at least 1 character"),
        ("stopping.max_rounds=0", "stopping.max_rounds: Input should be greater than or equal to 1 (given: 0)"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_was_given(override: str, message: str) -> None:
    assert fault([override]).startswith(f"configuration: {message}")


def test_several_faults_are_told_at_once() -> None:
    message = fault(["sampling.k=1", "probe.epoch=5"])
    assert "sampling.k" in message
    assert "probe.epoch" in message


@pytest.mark.parametrize(("document", "key"), [({"model": {"path": "m"}}, "pool"), ({**LEAST, "pool": {}}, "pool.questions")])
def test_a_missing_key_is_named(tmp_path: Path, document: dict[str, Any], key: str) -> None:
    path = written(tmp_path / "run.yaml", document)
    assert fault([], path) == f"{path}: '{key}' is missing"


def test_overrides_are_dotted_yaml_and_win_over_values_file_and_preset(tmp_path: Path) -> None:
    preset = load_preset("bundled-world")
    budget = preset["selection"]["budget"] + 1
    document = {**LEAST, "preset": "bundled-world", "selection": {"budget": budget}, "probe": {"epochs": 3}, "seed": 1}
    path = written(tmp_path / "run.yaml", document)
    overrides = ["probe.epochs=5", "sampling.stop=['.', ';']", "pool.test=null", "probe.layers=[1, 2]", "output=s3://b/x=y"]
    config = load_config(path, overrides, values={"probe.epochs": 4, "seed": 2})
    assert config.probe.epochs == 5  # override
    assert config.seed == 2  # value
    assert config.selection.budget == budget  # file
    assert config.probe.hidden_width == preset["probe"]["hidden_width"]  # preset
    assert (config.sampling.stop, config.pool.test, config.probe.layers) == ([".", ";"], None, [1, 2])
    assert config.output == "s3://b/x=y"  # what follows the first = is the value


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_numbers_may_be_written_with_an_exponent(text: str) -> None:
    config = load_config(None, [f"probe.learning_rate={text}"], values={"model.path": "m", "pool.questions": "p"})
    assert config.probe.learning_rate == 1e-4


@pytest.mark.parametrize("override", ["probe.epochs", "=5", "probe.epochs:5"])
def test_an_override_that_is_no_key_and_value_is_refused(override: str) -> None:
    assert fault([override]) == f"-o {override}: an override is KEY=VALUE, such as probe.epochs=5"


def test_an_override_below_a_value_is_refused() -> None:
    assert fault(["seed.x=1", "seed=1", "seed.y=2"]) == "-o seed.y=2: 'seed' is a value, not a section"


def test_an_override_that_is_not_yaml_is_refused() -> None:
    assert fault(["sampling.stop=[a"]) == "-o sampling.stop=[a: the value is not YAML"


def test_a_file_that_is_not_there_or_not_yaml_or_no_mapping_is_refused(tmp_path: Path) -> None:
    assert fault([], tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such file; give a YAML configuration"
    path = written(tmp_path / "a.yaml", "seed: 0\nmodel: [\n")
    assert fault([], path).startswith(f"{path}:3: not YAML (")
    path = written(tmp_path / "b.yaml", "- 1\n- 2\n")
    assert fault([], path) == f"{path}: a configuration is a mapping of keys, this is a list"
    path = written(tmp_path / "c.yaml", "")
    assert fault([], path) == f"{path}: the file is empty; give a YAML configuration"


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"ka2l-paper"}))  # that one has no model
def test_every_preset_is_valid_with_a_pool(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "run.yaml", {"preset": name, "pool": {"questions": "pool.jsonl"}})
    config = load_config(path)
    preset = load_preset(name)
    assert config.model.path == preset["model"]["path"]
    assert config.finetune.learning_rate == preset.get("finetune", {}).get("learning_rate", FinetuneConfig().learning_rate)


def test_presets_hold_the_papers_table_2() -> None:
    """Learning rate, batch size, gradient accumulation steps."""
    table = {
        "deepseek-r1-distill-qwen-7b": (5e-5, 4, 4),
        "glm-4-9b-chat": (1e-4, 2, 8),
        "llama-2-7b-chat": (1e-4, 4, 2),
        "llama-3.1-8b-instruct": (1e-4, 4, 2),
        "mistral-7b-instruct-v0.1": (1e-4, 4, 4),
        "mistral-7b-instruct-v0.3": (1e-4, 4, 4),
        "phi-3.5-mini-instruct": (1e-4, 4, 8),
        "qwen1.5-7b-chat": (5e-5, 4, 4),
        "qwen2.5-7b-instruct": (5e-5, 4, 4),
    }
    for name, (rate, batch, accumulation) in table.items():
        finetune = load_preset(name)["finetune"]
        expected = {"learning_rate": rate, "batch_size": batch * accumulation, "micro_batch_size": batch, "epochs": 3}
        expected["replay_known"] = 0
        assert finetune == expected, name


def test_an_unknown_preset_names_the_nearest() -> None:
    message = fault(["preset=qwen2.5-7b-instuct"])
    assert message.startswith("no preset 'qwen2.5-7b-instuct' (nearest: 'qwen2.5-7b-instruct'); there are: bundled-world, ")


def test_a_dumped_configuration_loads_as_the_same(tmp_path: Path) -> None:
    document = {
        **LEAST,
        "prompt": {"examples": [["Where was Fra born?", "Quast"]]},
        "probe": {"layers": [0, 4]},
        "preset": "bundled-world",
    }
    config = load_config(written(tmp_path / "run.yaml", document))
    assert load_config(written(tmp_path / "resolved.yaml", dump(config))) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate(LEAST).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_value_has_a_description(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        holds_values = not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
        if holds_values:
            assert field.description, name
            assert field.description.strip().endswith("."), name


def test_every_section_has_a_description() -> None:
    assert [name for name, field in RunConfig.model_fields.items() if not field.description] == []


def test_keys_that_are_not_content_are_keys() -> None:
    keys = set(valid_keys())
    assert {key for key in NOT_CONTENT if not key.startswith("engine.vllm.")} <= keys
    assert set(OF_THE_WHOLE_RUN) <= keys


def test_importing_the_configuration_loads_neither_torch_nor_ray() -> None:
    script = (
        "import sys, ka2l_ray.config_files; from ka2l_ray.config_files import load_config, preset_names; preset_names(); "
        "print([m for m in ('torch', 'ray', 'transformers', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_bounds_are_not_ranked_by() -> None:
    overrides = ["sampling.stop_when_decided=true", "entropy.rule=ka2l", "selection.strategy=semantic_entropy"]
    assert "semantic_entropy ranks by what sampling.stop_when_decided only bounds" in fault(overrides)


def test_top_k_zero_is_no_filter_and_decides_nothing() -> None:
    assert SamplingConfig(top_k=0) == SamplingConfig(top_k=None) == SamplingConfig()
    assert SamplingConfig(top_k=50).top_k == 50


def test_an_override_without_a_value_is_the_empty_text_where_a_text_is_wanted(tmp_path: Path) -> None:
    path = written(tmp_path / "config.yaml", {**LEAST, "prompt": {"instruction": "Be brief."}, "sampling": {"memo": "answers"}})
    assert load_config(path).prompt.instruction == "Be brief."
    assert load_config(path, ["prompt.instruction="]).prompt.instruction == ""
    assert load_config(path, ["sampling.memo="]).sampling.memo is None, "what may be left out is left out"
    with pytest.raises(UserError, match=r"probe.epochs: .*\(given: None\)"):
        load_config(path, ["probe.epochs="])


def test_off_is_a_word_however_yaml_reads_it() -> None:
    given = {"model.path": "m", "pool.questions": "q"}
    assert load_config(None, ["prompt.thinking=off"], given).prompt.thinking == "off"


def test_gpus_are_a_number_or_auto() -> None:
    assert load_config(None, None, {"model.path": "m", "pool.questions": "q"}).engine.gpus == "auto"
    for given, wanted in (("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("auto", "auto")):
        assert validate_override(f"engine.gpus={given}").engine.gpus == wanted
    for wrong in ("-1", "all"):
        with pytest.raises(UserError, match=r"engine.gpus: .*auto") as caught:
            validate_override(f"engine.gpus={wrong}")
        assert str(caught.value).count("engine.gpus") == 1


def validate_override(override: str) -> RunConfig:
    return load_config(None, [override], {"model.path": "m", "pool.questions": "q"})


def test_a_probe_on_every_token_names_its_layers() -> None:
    assert "name 4 layers at most" in fault(["probe.position=attention"])
    assert "name 4 layers at most" in fault(["probe.position=attention", "probe.layers=[1,2,3,4,5]"])
    assert validate({**LEAST, "probe": {"position": "attention", "layers": [2]}}).probe.position == "attention"


@pytest.mark.parametrize("position", ["mean", "attention"])
def test_positions_that_vllm_does_not_read_are_refused(position: str) -> None:
    wanted = fault(["engine.hidden_states=vllm", f"probe.position={position}", "probe.layers=[1]"])
    assert f"probe.position {position} reads more than a prompt's last token, which vLLM does not hand on" in wanted


@pytest.mark.parametrize("bound", ["sampling.stop_when_decided", "entropy.label_only"])
def test_a_target_of_all_answers_is_not_fitted_to_bounds(bound: str) -> None:
    wanted = fault([f"{bound}=true", "entropy.rule=ka2l", "probe.target=soft"])
    assert f"probe.target soft is fitted to what {bound} only bounds" in wanted
