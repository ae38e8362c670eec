package holdfile

import "time"

// MaxMissing bounds State.Missing.
const MaxMissing = 16

// State is what the plugin says of its hold, in a trailer of Status. Names of the fields are a contract between releases.
type State struct {
	Limit time.Duration `json:"limit"` // outageHold; above 0
	// Armed: the hold would answer now if the HSM went away. Otherwise Why says what keeps it from that.
	Armed  bool   `json:"armed"`
	Why    string `json:"why,omitempty"`
	Held   int    `json:"held"`   // DEKs in memory
	Listed int    `json:"listed"` // DEKs that are to be in memory
	Full   bool   `json:"full,omitempty"`
	// Missing are the key_ids of listed DEKs that are not held; at most MaxMissing.
	Missing []string `json:"missing,omitempty"`
	// Holding: the plugin answers without the HSM, since Since and until Until at the latest.
	Holding bool          `json:"holding"`
	Since   time.Time     `json:"since,omitzero"`
	Until   time.Time     `json:"until,omitzero"`
	Used    time.Duration `json:"used"` // of Limit, in the last seven days
	// Seed is the ID of the Seed that was taken up last; of its entries Added are new in the list and Left did not fit in it.
	Seed  string `json:"seed,omitempty"`
	Added int    `json:"added,omitempty"`
	Left  int    `json:"left,omitempty"`
	// Dropped is the ID of the Drop that was done last.
	Dropped string `json:"dropped,omitempty"`
}
