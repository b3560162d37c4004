package initrd

const sysFinitModule = 313
