"""The images of Visual Genome, which some datasets name by their number alone."""

from instruction_dataset.converting import Row

IMAGE_DATA = "image_data.json"


def path_of(row: Row, paths: dict[int, str], key: str = "image_id") -> str:
    """The path of the image that a field of a row names; ValueError for one that is not listed."""
    number = row.number_of(key)
    if number not in paths:
        raise ValueError(f"field {row.path + key!r} names image {number}, which {IMAGE_DATA} does not list")
    return paths[number]
