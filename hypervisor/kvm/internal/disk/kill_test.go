package disk

const victimEnv = "VANTAGE_DISK_VICTIM"

func victim(args []string) int { return 0 }
