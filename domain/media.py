"""What a file holds, by its first bytes: what its sender calls it is a claim."""

PDF = "application/pdf"
TEXT = "text/plain"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
MEDIA_TYPES: dict[str, tuple[str, ...]] = {"image": _IMAGES, "document": (PDF, TEXT)}
"""What an image and a document may be."""
EXTENSIONS: dict[str, str] = dict(zip((*_IMAGES, PDF, TEXT), ("png", "jpg", "gif", "webp", "pdf", "txt"), strict=True))


def media_type_of_bytes(content: bytes) -> str | None:
    """One of those that models take; None for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    if content.startswith(b"%PDF-"):
        return PDF
    return TEXT if content and text_of(content) is not None else None


def text_of(content: bytes) -> str | None:
    """None for what is no text in UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text
