"""Where pairs and models come from: files, folders, the hub."""

from pathlib import Path

import yaml

TABLES = yaml.safe_load((Path(__file__).parent / "tables.yaml").read_text(encoding="utf-8"))
LFS = b"version https://git-lfs.github.com/spec"  # how a file begins that Git has not fetched
