"""The coded exercises of the notebooks: one module a notebook, named as the notebook is.

    from paged_core.exercises import block_tables as exercise

    exercise.slots.show(slots)     the verdict on an answer, and a picture of what went wrong; raises nothing
    exercise.slots.check(slots)    the same, but an answer that is not right raises

Nothing below imports this package, and `import paged_core` does not draw it in.
"""
