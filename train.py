"""Pre-train: python train.py --config=configs/mae.py:mask=dpp --workdir=runs/mine"""

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax.commands import train

if __name__ == "__main__":
    train.main()
