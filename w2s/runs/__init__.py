"""From a run's specification to its predictions: cache, labels, workers, devices."""
