"The drawn world, the tiny model, its judges and the benchmark."
