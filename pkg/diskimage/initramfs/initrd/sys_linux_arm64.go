package initrd

const sysFinitModule = 273
