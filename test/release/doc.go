// Package release tests what make release makes: that every clone of a commit gives the same bytes, and what is in the
// archives. Its tests have the build tag e2e, because a build with nothing kept takes minutes.
package release
