"""Settings under which every strategy takes its few steps in a second."""

QUICK = (
    "strategy.importance_samples=20",
    "strategy.candidates=30",
    "strategy.epochs=2",
    "strategy.batch_size=150",
    "strategy.memory_batch_size=15",
)
