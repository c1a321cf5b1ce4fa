"""What is inside an encoder: each file is a task of eval.py, beside the evaluations of `evals`."""
