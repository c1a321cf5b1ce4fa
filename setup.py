"""Which files a wheel has: those of the package, and the recipes of configs/ inside it.

Everything else about the project stands in pyproject.toml, which has no word for a folder that
joins packages that are found.
"""

from setuptools import find_namespace_packages, find_packages, setup

RECIPES = "dppmask_jax.recipes.files"  # see dppmask_jax/recipes/__init__.py

setup(
    packages=[
        *find_packages(include=["dppmask_jax", "dppmask_jax.*"]),
        RECIPES,
        *(
            f"{RECIPES}.{folder}"
            for folder in find_namespace_packages("configs", exclude=["*__pycache__*"])
        ),
    ],
    package_dir={RECIPES: "configs"},
)
