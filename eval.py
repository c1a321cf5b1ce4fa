"""Evaluate: python eval.py --config=configs/eval.py:task=knn --checkpoint=runs/mine"""

from dppmask_jax import extras

if __name__ == "__main__":  # before what is missing is imported
    extras.require()

from dppmask_jax.commands import evaluation

if __name__ == "__main__":
    evaluation.main()
