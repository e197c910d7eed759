"""Packages of the wheel: the code, and the configurations as ``dist_train/configs``."""

from setuptools import find_packages, setup

configs = ["", *(f".{name}" for name in ("splits", "clusters", "recipes", "studies"))]
setup(
    packages=[
        *find_packages(include=["dist_train*", "launch*"]),
        *(f"dist_train.configs{name}" for name in configs),
    ],
    package_dir={"dist_train.configs": "configs"},
    package_data={
        "dist_train": ["py.typed"],
        "launch": ["py.typed"],
        "dist_train.classifier.serving": ["page/*", "page/examples/*"],
        "dist_train.report": ["templates/*", "templates/sections/*"],
        "launch.slurm": ["job_script.sh"],
        "dist_train.configs": ["*.yaml"],
        "dist_train.configs.splits": ["*.json"],
        "dist_train.configs.clusters": ["*.yaml"],
        "dist_train.configs.recipes": ["*.yaml"],
        "dist_train.configs.studies": ["*.yaml"],
    },
)
