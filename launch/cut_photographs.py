"""Cuts photographs into a small labelled set: which photograph is a crop of? One class a photograph.

python -m launch.cut_photographs FOLDER... --to data/photographs

Training crops come only from the left 65 % of a photograph and validation crops only from the right 30 %, so no pixel
is in both. It is a task about instances, not about categories, on natural pictures: enough for filters to form. Makes
TO/train/<photograph>/*.jpg and TO/val/<photograph>/*.jpg, for `dist-alexnet shards build folder`.
"""

import argparse
import hashlib
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageStat

TRAIN_PART, VAL_PART = 0.65, 0.30  # of the width, from the left and from the right
SIDES = (0.5, 1.0)  # of the largest square that fits into the validation part
LEAST_DEVIATION = 10.0  # grey levels: a crop of plain sky has no answer
TRIES = 50


def photographs(folders: list[Path]) -> list[Path]:
    """The JPEG files below the folders, by name; of files with equal bytes the first."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return sorted({hashlib.sha256(path.read_bytes()).digest(): path for path in reversed(files)}.values())


def crops(photograph: Image.Image, left: float, right: float, side: int, draw: random.Random) -> Iterator[Image.Image]:
    """Square crops from the part [left, right) of the width, `side` pixels after scaling, without end.

    Ends where none of TRIES has anything on it.
    """
    width, height = photograph.size
    largest = min(int(VAL_PART * width), height)
    while True:
        for _ in range(TRIES):
            edge = int(largest * draw.uniform(*SIDES))
            x = draw.randint(int(left * width), int(right * width) - edge)
            y = draw.randint(0, height - edge)
            crop = photograph.crop((x, y, x + edge, y + edge)).resize((side, side), Image.Resampling.BICUBIC)
            if ImageStat.Stat(crop.convert("L")).stddev[0] >= LEAST_DEVIATION:
                break
        else:
            return
        yield crop


def cut(file: Path, to: Path, train: int, val: int, side: int) -> bool:
    """The crops of one photograph, or none at all where it has too little on it. The same file gives the same crops."""
    draw = random.Random(file.stem)  # of its bytes, not of hash(), which differs by process
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    parts = {"train": (train, 0.0, TRAIN_PART), "val": (val, 1 - VAL_PART, 1.0)}
    made = {
        split: [crop for _, crop in zip(range(count), crops(photograph, left, right, side, draw), strict=False)]
        for split, (count, left, right) in parts.items()
    }
    if any(len(made[split]) < count for split, (count, _, _) in parts.items()):
        return False
    for split, pictures in made.items():
        folder = to / split / file.stem
        folder.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number:04d}.jpg", quality=95)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folders", type=Path, nargs="+", help="folders with JPEG photographs of 1,000 pixels and more")
    parser.add_argument("--to", type=Path, required=True, help="folder to make; it must not be there")
    parser.add_argument("--train", type=int, default=160, help="training crops a photograph")
    parser.add_argument("--val", type=int, default=20, help="validation crops a photograph")
    parser.add_argument("--side", type=int, default=112, help="pixels of a crop's side")
    asked = parser.parse_args()
    if asked.to.exists():
        parser.error(f"{asked.to} is there already: name another folder, or take it away")
    files = photographs(asked.folders)
    if not files:
        parser.error(f"no .jpg files below {', '.join(map(str, asked.folders))}: name folders with photographs")
    names = [file.stem for file in files]
    for number, name in enumerate(names):
        if name in names[:number]:
            parser.error(f"{files[names.index(name)]} and {files[number]} would be one class {name}: rename one")
    partial = asked.to.with_name(f".{asked.to.name}.partial")  # so that what was killed is not taken for a set
    shutil.rmtree(partial, ignore_errors=True)
    kept = 0
    for file in files:
        try:
            kept += cut(file, partial, asked.train, asked.val, asked.side)
        except (OSError, Image.DecompressionBombError) as error:
            parser.error(f"{file} cannot be cut ({error}): take it away")
    if not kept:
        parser.error(f"none of the {len(files)} photographs has enough on it: name others")
    partial.rename(asked.to)
    print(f"{kept} of {len(files)} photographs, {asked.train} + {asked.val} crops of {asked.side} x {asked.side} each")


if __name__ == "__main__":
    main()
