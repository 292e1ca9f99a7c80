"""Whether a model's weights are whole. Names, shapes and files show in the files' headers, before anything is loaded; values when
the model is.

transformers fills what a checkpoint lacks with random numbers and says so in a warning; here it is an error.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.logging import EmptyTqdm

from ka2l_ray.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "copy or download it again"
CONVERT = (
    "convert it first: transformers' from_pretrained(directory, gguf_file=...) reads it, save_pretrained writes safetensors, "
    "both of the model and of the tokenizer"
)
UNFIT = (
    "tensors that are loaded into one (such as those of the experts) do not fit together, so some are missing or of another shape"
)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_headers(
    auto: Any, path: str, name: str, *, unused: Collection[str] = (), bins: bool = False, trust_remote_code: bool = False
) -> None:
    """Hold the headers of the weights in directory ``path`` against the model that ``auto`` makes of its config.json.

    A hub name is left to the hub, and to ``load_weights``. So are the tensors of a quantised checkpoint; its files are looked at.

    Args:
        name: the model, as the user calls it.
        unused: modules that may be missing, by their last name, since nothing asks for what they compute.
        bins: weights may be in PyTorch's own format, which has no header to look at.

    Raises:
        UserError: no weights, a file that is not there or cut short, or a tensor that is missing or of another shape.
    """
    at = Path(path)
    in_safetensors = (at / WEIGHTS).is_file() or (at / INDEX).is_file()  # which transformers prefers
    if not at.is_dir() or (bins and not in_safetensors and list(at.glob("pytorch_model*.bin"))):
        return
    report = _report(auto, path, _stamped(at, name), trust_remote_code)
    fault = report if isinstance(report, str) else _structural_fault(report, unused)
    if fault is not None:
        raise UserError(f"{name}: {fault}; {AGAIN}")


def load_weights(auto: Any, path: str, name: str, *, unused: Collection[str] = (), **options: Any) -> Any:
    """``auto.from_pretrained(path, **options)``, with every tensor from the checkpoint, and finite.

    Raises:
        UserError: the checkpoint lacks a tensor, has one of another shape or with values that are not finite, or is damaged.
    """
    try:
        with _quiet():
            model, info = auto.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (SafetensorError, OSError, EOFError) as error:
        raise UserError(f"{name}: its weights cannot be read ({_line(error)}); {AGAIN}") from None
    except RuntimeError as error:
        if not _is_conversion(error):
            raise
        raise UserError(f"{name}: {UNFIT}; {AGAIN}") from None
    fault = _structural_fault(info, unused)
    if fault is not None:
        raise UserError(f"{name}: {fault}; {AGAIN}")
    check_finite(model.state_dict().items(), name)
    return model


def check_finite(tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Raise a UserError where a tensor holds NaN or infinity: one pass over the weights, on their own devices."""
    for tensor_name, tensor in tensors:
        # A tensor on no device is fetched when it is used; that of a quantised layer has no NaN, or is checked by its scales.
        if tensor.is_meta or tensor.dtype not in DTYPES.values() or not tensor.numel():
            continue
        low, high = tensor.detach().aminmax()  # both NaN where one value is
        if not (torch.isfinite(low) and torch.isfinite(high)):
            dtype = str(tensor.dtype).removeprefix("torch.")
            beyond = ", or too large for it (set dtype: float32)" if tensor.dtype == torch.float16 else ""
            raise UserError(
                f"{name}: tensor {tensor_name} holds values that are not finite in {dtype}; its weights are damaged{beyond}"
            )


def check_finite_files(auto: Any, path: str, name: str, trust_remote_code: bool = False) -> None:
    """As ``check_finite``, for another engine's loader, which does not look: what of directory ``path`` the model is made of."""
    if not Path(path).is_dir():
        return
    files = _stamped(Path(path), name)
    report = _report(auto, path, files, trust_remote_code)
    ignored = set() if isinstance(report, str) else set(report["unexpected_keys"])  # old buffers, such as masks of -inf
    for file, _, _ in files:
        with safe_open(file, "pt") as weights:
            check_finite(((key, weights.get_tensor(key)) for key in weights.keys() if key not in ignored), name)  # noqa: SIM118


def _stamped(directory: Path, name: str) -> tuple[tuple[str, int, int], ...]:
    """(file, bytes, time of change) of each file that transformers reads."""
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in _weight_files(directory, name))


def refuse_gguf(path: str, name: str) -> None:
    """Raise a UserError where ``path`` is a GGUF file, or a directory whose weights are one."""
    at = Path(path)
    files = [at] if at.is_file() else [] if (at / WEIGHTS).is_file() or (at / INDEX).is_file() else sorted(at.glob("*.gguf"))
    if files and files[0].suffix == ".gguf":
        raise UserError(f"{name}: its weights are a GGUF file ({files[0].name}), which no engine here reads; {CONVERT}")


def _weight_files(directory: Path, name: str) -> list[Path]:
    """The files that transformers reads.

    Raises:
        UserError: there are none, or the index names one that is not there.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if not index.is_file():
        refuse_gguf(str(directory), name)
        raise UserError(f"{name}: config.json is there, but no weights ({WEIGHTS} or {INDEX}); give a complete model directory")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{name}: {INDEX} is damaged; {AGAIN}") from None
    lacking = [file for file in names if not (directory / file).is_file()]
    if lacking:
        raise UserError(f"{name}: {INDEX} names {some(lacking)}, not there; {AGAIN}")
    return [directory / file for file in names]


@cache
def _report(auto: Any, path: str, files: tuple[tuple[str, int, int], ...], trust: bool) -> str | dict[str, Any]:
    """transformers' loading report of ``files``, by their headers, or why there is none; looked for once, for the same files."""
    headers: dict[str, Tensor] = {}
    for file, _, _ in files:
        try:
            with safe_open(file, "pt") as weights:
                for key in weights.keys():  # noqa: SIM118
                    at = weights.get_slice(key)
                    dtype = DTYPES.get(at.get_dtype(), torch.uint8)
                    headers[key] = torch.empty(at.get_shape(), dtype=dtype, device="meta")
        except (SafetensorError, OSError) as error:
            return f"{Path(file).name} is cut short or damaged ({_line(error)})"
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    if getattr(config, "quantization_config", None) is not None:
        return {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": [], "error_msgs": []}  # its loader's own matter
    with torch.device("meta"):
        model_class = type(auto.from_config(config, trust_remote_code=trust))
    # transformers' own loader, with its renamings and fusions, on tensors that have a name and a shape and no values.
    options = {"device_map": {"": "meta"}, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with _quiet(bars=False):
            _, info = model_class.from_pretrained(None, config=config, state_dict=headers, **options)
    except RuntimeError as error:
        if not _is_conversion(error):
            raise
        return UNFIT
    return dict(info)


def _structural_fault(info: dict[str, Any], unused: Collection[str]) -> str | None:
    """What transformers' loading report says is wrong, in words."""
    missing = sorted(key for key in info["missing_keys"] if not set(key.split(".")) & set(unused))
    if missing:
        return f"{len(missing)} tensors are missing from its weights ({some(missing)})"
    for key, there, wanted in sorted(info["mismatched_keys"]):
        if not set(key.split(".")) & set(unused):
            return f"tensor {key} has shape {list(there)}, config.json asks for {list(wanted)}"
    errors = info["error_msgs"]
    return f"its weights do not load ({_line(errors[0])})" if errors else None


def _is_conversion(error: RuntimeError) -> bool:
    return "automatic conversion of the weights" in str(error)


@contextmanager
def _quiet(*, bars: bool = True) -> Iterator[None]:
    """Without transformers' table of what is missing, as we say it; without its progress bars too unless ``bars``."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hook = None if bars else transformers_logging.set_tqdm_hook(lambda _, args, kwargs: EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if not bars:
            transformers_logging.set_tqdm_hook(hook)


def some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
