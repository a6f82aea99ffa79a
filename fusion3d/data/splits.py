"""Which scenes a split has: the official nuScenes splits, and a data set's own in ``splits.json``."""

from __future__ import annotations

import warnings

from fusion3d.data.nuscenes import Tables
from fusion3d.errors import DataError
from fusion3d.files import read_json

_OFFICIAL = {
    "train": (
        "1-2 4-11 19-34 41-76 120-135 138-139 149-152 154-155 157-168 170-185 187-188 190-196 199-200 "
        "202-204 206-214 218-220 222 224-264 283-306 315-318 321 323-324 328 347-386 388-403 405-408 "
        "410-459 461-465 467-469 471-472 474-480 499-502 504-515 517-518 525-539 541-546 566 568 "
        "570-578 580 582-600 639-679 681 683-689 695-698 700-701 703-719 726-728 730-731 733-741 744 "
        "746-747 749-752 757-765 767-769 786-787 789-792 803-806 808-813 815-817 819-822 847-856 858 "
        "860-866 868-873 875-878 880 882-903 945 947 949 952-953 955-961 975-984 988-992 994-1025 "
        "1044-1058 1074-1102 1104-1110"
    ),
    "val": (
        "3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 "
        "632-638 770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 "
        "1059-1073"
    ),
    "test": (
        "77-91 111-119 140 142-148 265-266 279-282 307-314 333-343 481-498 547-551 601-604 606-624 "
        "827-831 833-842 844-846 932-933 935-943 1026-1043"
    ),
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
    "train_detect": (
        "1-2 41-76 161-168 170-176 190-196 199-200 202-204 206-214 254-264 283-306 315-318 321 "
        "323-324 347-375 382 420-439 457-459 461-465 467-469 471-472 474-480 566 568 570-578 580 "
        "582-583 665-679 681 683-689 739-741 744 746-747 749-752 757-765 767-769 868-873 875-878 880 "
        "882-903 945 947 949 952-953 955-961 975-984 988-991 1011-1025 1074-1102 1104-1105"
    ),
    "train_track": (
        "4-11 19-34 120-135 138-139 149-152 154-155 157-160 177-185 187-188 218-220 222 224-253 328 "
        "376-381 383-386 388-403 405-408 410-419 440-456 499-502 504-515 517-518 525-539 541-546 "
        "584-600 639-664 695-698 700-701 703-719 726-728 730-731 733-738 786-787 789-792 803-806 "
        "808-813 815-817 819-822 847-856 858 860-866 992 994-1010 1044-1058 1106-1110"
    ),
}  # scene numbers; a range includes both ends


def official_scenes(split: str) -> tuple[str, ...]:
    """Scene names of an official nuScenes split, in the devkit's order (ascending)."""
    names = []
    for part in _OFFICIAL[split].split():
        first, _, last = part.partition("-")
        names += [f"scene-{number:04d}" for number in range(int(first), int(last or first) + 1)]
    return tuple(names)


def own_splits(tables: Tables) -> dict[str, list[str]]:
    """The custom splits of a version: ``splits.json`` maps a name to a list of scene names. Empty without
    the file.

    Raises:
        DataError: the file is not JSON of that form.
    """
    path = tables.root / tables.version / "splits.json"
    if not path.is_file():
        return {}
    form = 'expected {"split": ["scene name", ...], ...}'
    splits = read_json(path, form)
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()):
        raise DataError(f"{path}: {form}")
    return splits


def samples_of(tables: Tables, split: str) -> list[int]:
    """Sample rows of a split: scene after scene in the table's order, each in order of time.

    ``all`` is every scene that the data set has. A split of the data set's own ``splits.json`` goes before an official
    one of the same name. Scenes that the data set does not have (a partial download) are left out with a warning.

    Raises:
        DataError: no split has this name, or none of its scenes is in the data set.
    """
    own = {"all": [name.decode() for name in tables.scene_name.tolist()]} | own_splits(tables)
    if split not in own and split not in _OFFICIAL:
        raise DataError(
            f"no split {split!r} for {tables.root / tables.version}; known: {', '.join([*own, *_OFFICIAL])}"
        )
    wanted = set(own[split] if split in own else official_scenes(split))
    rows = [row for row, name in enumerate(tables.scene_name.tolist()) if name.decode() in wanted]
    if not rows:
        raise DataError(
            f"split {split!r} names {len(wanted)} scenes, and {tables.root / tables.version} has none of "
            f"them; it has {len(tables.scene_name)} scenes. Check data.version and the split"
        )
    if len(rows) < len(wanted):
        warnings.warn(
            f"split {split!r} names {len(wanted)} scenes; {tables.version} has {len(rows)} of them",
            stacklevel=2,
        )
    samples = []
    for scene in rows:
        members = (tables.sample_scene == scene).nonzero()[0]
        samples += members[tables.sample_time[members].argsort(kind="stable")].tolist()
    return samples
