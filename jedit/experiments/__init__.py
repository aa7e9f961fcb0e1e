"""One experiment from its config to the files of its workdir."""

from jedit.experiments.tasks import TASKS, run

__all__ = ['TASKS', 'run']
