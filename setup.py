"""Package of the ament_python kind; also installs with plain pip."""

from glob import glob

from setuptools import find_packages, setup

NAME = "flowodom"

setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed"], f"{NAME}.weights": ["*.safetensors", "*.md"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", glob("launch/*.launch.py")),
        (f"share/{NAME}/config", glob("config/*")),
    ],
    install_requires=[
        "numpy",
        "open3d",
        "opencv-python-headless",
        "matplotlib",
        "pyyaml",
        "mcap",
        "rosbags>=0.11",
        "rosbags-image",
        "safetensors",
        "torch>=2.2",
        "tqdm",
        "lz4",
        "zstandard",
    ],
    extras_require={
        "dds": ["cyclonedds>=0.10"],
        "published": ["transformers"],
        "test": ["evo", "mypy", "pytest>=7.4", "pytest-xdist", "ruff", "scipy", "types-PyYAML", "types-tqdm"],
    },
    python_requires=">=3.10",
    zip_safe=False,
    maintainer="flowodom maintainers",
    maintainer_email="maintainers@example.org",
    description="Visual odometry from dense optical flow: camera topics in, odom and moving point clouds out.",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "flowodom = flowodom.cli:main",
            "odometry_node = flowodom.node:main",
            "drift_node = flowodom.node:drift_main",
        ]
    },
)
