"""What scorer and learner return: a table of rows, to be had as pandas or Arrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd


class Table:
    """Rows in the order of what was given, and ``facts`` about all of them.

    Args:
        index: pandas index of what was given, if it had one; ``to_pandas`` gives it back, so that columns can be put beside it.
    """

    def __init__(self, arrow: pa.Table, facts: dict[str, Any], index: Any = None) -> None:
        self.facts = facts
        self.index = index
        self._arrow = arrow

    @property
    def columns(self) -> list[str]:
        return list(self._arrow.column_names)

    def __len__(self) -> int:
        return int(self._arrow.num_rows)

    def __getitem__(self, column: str | list[str]) -> Any:
        """A Series, or a DataFrame of several columns."""
        return self.to_pandas()[column]

    def to_arrow(self) -> pa.Table:
        return self._arrow

    def to_pandas(self) -> pd.DataFrame:
        """Lists stay lists."""
        import pandas as pd

        return pd.DataFrame(self._arrow.to_pydict(), index=self.index)

    def __repr__(self) -> str:
        facts = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in self.facts.items()
        )
        return f"{self.to_pandas()!r}\n{facts}"

    def _repr_html_(self) -> str:
        html: str = self.to_pandas()._repr_html_()  # type: ignore[operator]
        return html
