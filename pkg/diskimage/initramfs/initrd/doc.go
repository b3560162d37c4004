// Package initrd is the init of a native initramfs: it finds the root, mounts it,
// and hands over to the init that is there. docs/initramfs.md is the normative text.
//
//	func main() { initrd.Main() } // as /init it never returns; as modprobe it does
//
// It guarantees that it ends by executing the root's init, or by saying why not and
// restarting the machine: never by a panic of the kernel without a reason; that what the
// command line says of verity is done or fails; and that disks, sysfs and lists are read
// within bounds. It imports a handful of packages of the standard library and no fmt,
// since it is in the initramfs of every image, and reads disks with code of its
// own for the same reason.
//
// What decides (Parse, tables, superblocks, Modules) is tested as any package;
// what acts is what machines boot through in the tests of cmd/imgbuild.
package initrd
