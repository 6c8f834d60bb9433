"""How long a conversation is for its model."""

from domain.usage import Usage


class TokenCount:
    """How long the conversation is for the model: what it said itself of the last call, and an estimate of what came since."""

    def __init__(self) -> None:
        self.estimated = 0
        """All of it, estimated."""
        self._measured: int | None = None
        self._since = 0
        self._after_asking = 0
        self._when_asked = 0
        self._last: tuple[int, int] | None = None

    def add(self, tokens: int, *, by_user: bool) -> None:
        self.estimated += tokens
        self._since += tokens
        if by_user:
            self._after_asking += tokens

    def asked(self) -> None:
        self._after_asking, self._when_asked = 0, self.estimated

    def answered(self, usage: Usage) -> None:
        given = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
        if given:
            self._last = (given, self._when_asked)
            self._measured, self._since = given + usage.output_tokens, self._after_asking

    def restart(self, estimated: int) -> None:
        """It is another conversation now."""
        self.estimated, self._measured, self._since = estimated, None, 0

    def scale(self, overhead: int) -> float:
        """By how much the model counts more than we do, who know nothing of its tokens: at most fourfold."""
        if self._last is None:
            return 1.0
        given, estimated = self._last
        return min(max(given / max(overhead + estimated, 1), 1.0), 4.0)

    def of_request(self, overhead: int) -> int:
        """Of the next request. `overhead`: of instructions and tools, estimated."""
        scale = self.scale(overhead)
        if self._measured is None:
            return round((overhead + self.estimated) * scale)
        return self._measured + round(self._since * scale)
