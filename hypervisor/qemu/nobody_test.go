package qemu_test

const nobodyEnv = "VANTAGE_TEST_AS_NOBODY"

func asNobody() int { return 0 }
