// Package socket sets what the kernel keeps of a TCP connection. What it keeps counts as memory of the container, and
// clients that do not read, or that send on, make it keep as much as they can.
//
// All of it only saves memory or work, so errors are ignored: a connection works without. On connections that are not
// those of the kernel, and on other systems than Linux, nothing happens.
package socket
