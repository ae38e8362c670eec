//go:build !man

package main

import "github.com/spf13/cobra"

// packaging are the commands of the program that make release builds for itself: here there are none.
func (c *command) packaging() []*cobra.Command { return nil }
