"""Evaluations as the commands run them: one task, the same of several runs, and tasks of tasks."""
