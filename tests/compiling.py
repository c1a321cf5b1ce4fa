"""How tests compile, which is most of what they do. Imported before JAX."""

import importlib.metadata

# A later XLA may end the process over a flag that it no longer has.
VERSION = importlib.metadata.version("jaxlib")
KNOWN = VERSION.startswith("0.10.")
KNOWN_TO_SPLIT = VERSION.startswith(("0.10.", "0.12."))


def xla_flags(devices, *, as_users):
    """XLA_FLAGS of a process on the CPU that sees so many devices.

    Args:
      as_users: fusions are compiled as users have them, by MLIR, which takes twice the time. The
        installed wheel and the newest jax are tested so.
    """
    flags = [
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",  # half the time
    ]
    if KNOWN_TO_SPLIT:
        flags.append("--xla_cpu_parallel_codegen_split_count=1")  # a fifth less on few cores
    if KNOWN and not as_users:
        flags.append("--xla_cpu_use_fusion_emitters=false")
        flags.append("--xla_llvm_disable_expensive_passes=true")
    return " ".join(flags)
