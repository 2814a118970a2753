"""Package metadata comes from settings.ini; `data/` is shipped inside the package as `sas_nb/data/`."""
from configparser import ConfigParser
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
suffix = "_requirements"
extras = {k.removesuffix(suffix): v.split() for k, v in cfg.items() if k.endswith(suffix)}
extras["all"] = sorted(
    {line for name, lines in extras.items() if name not in ("dev", "docs", "site") for line in lines}
)

setup(
    description=cfg["description"],
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 4 - Beta", "Framework :: Jupyter", "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence"
    ],
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    packages=find_packages(include=["sas_nb", "sas_nb.*"]) + ["sas_nb.data"],
    package_dir={"sas_nb.data": "data"},
    package_data={
        "sas_nb.data": ["tiny/**/*", "clips/*", "oracles/*", "report/*", "zoo/*", "finder/*", "bench/*",
                        "models/**/*"],
        "sas_nb.explore": ["static/*"],
        "sas_nb": ["py.typed"],
    },
)
