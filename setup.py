"""Packages of the wheel: the code, the configurations as ``dist_train/configs``, and folders of other files.

setuptools warns of a folder that holds files of a package and is no package itself."""

from setuptools import find_packages, setup

folders = {
    "dist_train.classifier.serving.page": ["*"],
    "dist_train.classifier.serving.page.examples": ["*"],
    "dist_train.report.templates": ["*.html", "*.css"],
    "dist_train.report.templates.sections": ["*.html"],
}
configs = ["", *(f".{name}" for name in ("splits", "clusters", "recipes", "studies"))]
setup(
    packages=[
        *find_packages(include=["dist_train*", "launch*"]),
        *folders,
        *(f"dist_train.configs{name}" for name in configs),
    ],
    package_dir={"dist_train.configs": "configs"},
    package_data={
        "dist_train": ["py.typed"],
        "launch": ["py.typed"],
        **folders,
        "launch.slurm": ["job_script.sh"],
        "dist_train.configs": ["*.yaml"],
        "dist_train.configs.splits": ["*.json"],
        "dist_train.configs.clusters": ["*.yaml"],
        "dist_train.configs.recipes": ["*.yaml"],
        "dist_train.configs.studies": ["*.yaml"],
    },
)
