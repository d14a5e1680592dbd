"""Whether a picture decodes at all, for those who look after shards."""

from dist_alexnet.data.decode import DecodeFault, decode_crop


def undecodable(picture: bytes) -> str | None:
    """Why the picture does not decode; None where it does. The whole of it is decoded."""
    try:
        decode_crop(picture, lambda width, height: (0.0, 0.0, float(width), float(height)), 8)
    except DecodeFault as fault:
        return str(fault)
    return None
