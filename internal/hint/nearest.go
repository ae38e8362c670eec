package hint

// maxNearest bounds the names that are compared, in bytes: the work is their product.
const maxNearest = 128

// Nearest returns the known name that a mistyped one most likely stands for, or "" when none is near: at most two letters
// wrong, missing, too many or exchanged with their neighbour, and no more than a third of the name.
func Nearest(name string, known []string) string {
	best, nearest := min(2, len(name)/3)+1, ""
	if len(name) > maxNearest {
		return ""
	}
	for _, k := range known {
		if len(k) > maxNearest {
			continue
		}
		if d := distance(name, k); d < best {
			best, nearest = d, k
		}
	}
	return nearest
}

// distance counts the edits from a to b: the optimal string alignment distance.
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
