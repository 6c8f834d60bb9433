"""How what is sent through Temporal is written and read: as JSON, by pydantic."""

from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter


class _Shared(PydanticPayloadConverter):
    """One for all. The SDK makes another for every run and every activation, and each builds what it validates with anew."""

    _made: "_Shared | None" = None

    def __new__(cls) -> "_Shared":
        if cls._made is None:
            cls._made = super().__new__(cls)
            PydanticPayloadConverter.__init__(cls._made)
        return cls._made

    def __init__(self) -> None: ...


data_converter = DataConverter(payload_converter_class=_Shared)
