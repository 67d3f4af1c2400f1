package linux

// mmFields is where the facts of an mm_struct lie.
type mmFields struct {
	pgd, exeFile, argStart, argEnd, envEnd field
	startBrk, brk, startStack, vdso        field
	mapRoot                                field // of the maple tree of mappings
	mapList                                field // first of the list of mappings
	span                                   span  // for a process
	mapSpan                                span  // for its mappings
}

func (m *mmFields) spans() {
	m.span = spanOf(m.pgd, m.exeFile, m.argStart, m.argEnd, m.envEnd)
	m.mapSpan = spanOf(m.startBrk, m.brk, m.startStack, m.vdso, m.mapRoot, m.mapList)
}
