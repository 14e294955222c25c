package cluster

import (
	"context"
	"fmt"
	"time"
)

// reportSettings creates an Event while the configuration files are not in use: once, and again every hour. It is not
// an error of the pass if that fails.
func (c *Cluster) reportSettings(ctx context.Context) {
	if c.o.Settings == nil || c.o.Pod == "" {
		return
	}
	err := c.o.Settings()
	if err == nil {
		c.mistake = ""
		return
	}
	now := time.Now()
	if err.Error() == c.mistake && now.Sub(c.mistakeAt) < remind {
		return
	}
	c.mistake, c.mistakeAt = err.Error(), now
	message := fmt.Sprintf("%.800s; the last good configuration files are in use; correct the file, and check it with "+
		"trow config check", err)
	if err := c.warn(ctx, "SettingsInvalid", "Configure", message, now); err != nil {
		c.line(c.o.Log.Error().Err(fmt.Errorf("create Event SettingsInvalid: %w", err)), failed, "")
	}
}
