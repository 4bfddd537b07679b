"""A full check of clean shards or of labels: every count and every hash is computed again.

depth-control verify --clean runs/clean
depth-control verify --labels runs/labels --images tar=runs/clean
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from depth_model.config import run_module
from depth_model.data.clean import MANIFEST, index_files, read_rows
from depth_model.data.shards import Member, index_shard, read_member
from depth_model.data.units import PROVENANCE, Unit, Units, files_of, input_hash, read_json, read_table
from depth_model.depth_map import DepthMap
from depth_model.engine.pool import ahead
from depth_model.errors import InputError, RunError


@dataclass(frozen=True)
class Config:
    """Checks what the data engine made; changes nothing."""

    clean: Path | None = None
    """Folder of shards that `collect` made."""
    labels: Path | None = None
    """Folder of the label shards."""
    images: str = ""
    """The images as they were given to `label`; from the labels' provenance when not given."""


def check_unit(folder: Path, units: Units, number: int) -> list[str]:
    """What is wrong with the labels of a unit: counts, hashes, names, places, each label, and its images."""
    name = units.names[number]
    files = files_of(folder, name)
    if not files["done"].exists():
        return [f"{name}: not labelled yet; run the same label command again"]
    found = []
    try:
        found.extend(_problems(files, units, number))
    except (InputError, OSError, KeyError) as error:
        found.append(error)
    return [f"{name}: {problem}" for problem in found]


def _problems(files: dict[str, Path], units: Units, number: int) -> Iterable[str]:
    done, table, unit = read_json(files["done"]), read_table(files["table"]), units.open(number)
    quarantine = read_json(files["quarantine"]) if files["quarantine"].exists() else {}
    for kind, file in (("label", files["labels"]), ("table", files["table"]), ("quarantine", files["quarantine"])):
        if file.exists() and _sha256(file) != done[f"{kind}_sha256"]:
            yield f"{file.name} has changed since it was written"
    members = {member.name: member for member in index_shard(files["labels"])}
    labelled = [row["name"].decode() for row in table]
    if {f"{image}.png" for image in labelled} != members.keys() or len(labelled) != len(members):
        yield "the table and the shard do not list the same labels"
        return
    for row, image in zip(table, labelled, strict=True):
        member = members[f"{image}.png"]
        if (member.offset, member.size) != (row["label_offset"], row["label_size"]):
            yield f"the table has a wrong place for the label of {image}"
        DepthMap.from_png(read_member(files["labels"], member), f"the label of {image}")
    wanted, got = [unit.image(i) for i in unit.indices], [*labelled, *quarantine]
    if sorted(wanted) != sorted(got) or done["labelled"] + done["quarantined"] != done["images"]:
        yield f"{len(wanted)} images, but {len(labelled)} labels and {len(quarantine)} in quarantine"
    if input_hash((unit.image(i), _image_hash(unit, i)) for i in unit.indices) != done["input_sha256"]:
        yield "the images have changed since they were labelled"


def _image_hash(unit: Unit, i: int) -> str:
    try:
        return hashlib.sha256(unit.source.encoded(i)).hexdigest()
    except InputError:
        return ""


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_clean(index: Path) -> list[str]:
    """What is wrong with a clean shard, given its index: hash, offsets, and the hash of every image."""
    shard = index.with_suffix(".tar")
    try:
        rows = [row for row in read_rows(index) if "file" in row]
        members = {member.name: member for member in index_shard(shard)} if rows or shard.exists() else {}
        wrong = [] if len(members) == len(rows) else [f"{shard}: {len(members)} images, {len(rows)} in its index"]
        for row in rows:
            member = Member(row["file"], row["offset"], row["size"])
            if members.get(row["file"]) != member:
                wrong.append(f"{shard}: {row['key']} is not where its index says")
            elif hashlib.sha256(read_member(shard, member)).hexdigest() != row["sha256"]:
                wrong.append(f"{shard}: {row['key']} has changed since it was written")
        return wrong
    except (InputError, OSError, KeyError) as error:
        return [f"{index}: {error}"]


def main(config: Config) -> None:
    """Runs the checks.

    Raises:
        InputError: nothing to check.
        RunError: something is wrong; each problem is printed, a line each.
    """
    tasks: list[tuple[Callable, tuple]] = []
    if config.clean is not None:
        if not (config.clean / MANIFEST).exists():
            raise InputError(f"--clean {config.clean}: no finished collection; run the same collect command again")
        counted = read_json(config.clean / MANIFEST)
        tasks += [(check_clean, (index,)) for index in index_files(config.clean)]
        tasks.append((_check_counts, (config.clean, counted)))
    if config.labels is not None:
        made_by = read_json(config.labels / PROVENANCE)
        units = Units(config.images or made_by["source"], made_by.get("per_shard", 1))
        if missing := sorted(set(made_by["units"]) ^ set(units.names)):
            raise InputError(f"--images: {missing[0]} is not in both the images and the labels; give the same images")
        tasks += [(check_unit, (config.labels, units, number)) for number in range(len(units))]
    if not tasks:
        raise InputError("nothing to check: give --labels DIR, or --clean DIR")
    wrong = 0
    with ThreadPoolExecutor(max(1, min(8, os.cpu_count() or 1))) as pool:
        checked = ahead(pool, lambda task: task[0](*task[1]), tasks, 16)
        for problems in tqdm(checked, total=len(tasks), desc="checked", mininterval=10):
            wrong += len(problems)
            for problem in problems:
                print(problem, flush=True)
    if wrong:
        raise RunError(
            f"{wrong} problems in {len(tasks)} units; for those with wrong labels remove UNIT.json and run label again"
        )
    print(f"{len(tasks)} units checked, nothing wrong")


def _check_counts(folder: Path, counted: dict) -> list[str]:
    rows = [0, 0]
    for index in index_files(folder):
        for row in read_rows(index):
            rows["file" not in row] += 1
    if rows != [counted["kept"], counted["examined"] - counted["kept"]]:
        return [f"{folder}: the indexes have {rows[0]} images kept and {rows[1]} dropped, its manifest other numbers"]
    return []


if __name__ == "__main__":
    run_module(Config, main, "depth_model.engine.verify")
