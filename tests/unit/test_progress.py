import pytest

from exprl.evaluation.progress import reference_progress

STEPS = ("a 1", "b 2", "c 3", "d 4")


@pytest.mark.parametrize(
    ("trace", "share"),
    [
        ("a 1\nb 2\nc 3\nd 4", 1.0),
        ("a 1\nb 2\nc 9\nd 4", 0.5),
        ("b 2\nc 3\nd 4", 0.0),
        ("  a 1 \n\n b 2", 0.5),
        ("a 1\nb 2\nc 3\nd 4\nand more", 1.0),
        ("", 0.0),
    ],
)
def test_share_of_leading_steps(trace, share):
    assert reference_progress(trace, STEPS) == share


def test_reference_without_steps():
    with pytest.raises(ValueError, match="at least one step"):
        reference_progress("a 1", ())
