"""Rows of the results table, for tests of the table and of the reports that contain it."""

from dataclasses import replace

from digitserve_training.evaluate.results import Row

ROW = Row(
    preset="compact",
    seed=1,
    command="digitserve-train train --seed 1",
    parameters=335_658,
    multiply_adds=3_586_432,
    epochs=40,
    training_images=55_000,
    validation_images=5_000,
    duration_s=812.5,
    validation_accuracy=0.993,
    test_accuracy=0.995,
    test_loss=0.0165,
    corruption_accuracy=0.96,
)
SECOND = replace(ROW, seed=2, command="digitserve-train train --seed 2", test_accuracy=0.997, duration_s=800.0)
SMALL = replace(ROW, preset="tiny", command="digitserve-train train --preset tiny", multiply_adds=900_000)
