package event

import _ "embed"

//go:embed schema.json
var schemaJSON string

// Schema returns the JSON Schema (draft-07) of the plain form.
func Schema() []byte { return []byte(schemaJSON) }
