from tests.fuzzing.targets import Register

TARGETS = Register().targets
