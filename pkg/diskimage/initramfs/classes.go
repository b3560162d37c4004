package initramfs

import (
	"maps"
	"slices"
	"strings"
)

// base is what every environment carries, where its kernel has it as a module:
// EFI variables, the clock, VLAN and bonds, watchdogs, and the keyboard of a console.
var base = words(`
	efivarfs efi_pstore rtc_cmos 8021q bonding af_packet ipv6 unix
	virtio_rng virtio_console iTCO_wdt i6300esb sp5100_tco ipmi_si ipmi_devintf acpi_ipmi
	atkbd i8042 usbhid hid_generic`)

// Classes of modules that a recipe names. A kernel need not have all of a class:
// which drivers there are changes from kernel to kernel.
var (
	storageClasses = map[string][]string{
		"nvme":   words(`nvme nvme_tcp vmd`),
		"ahci":   words(`ahci ata_piix ata_generic sd_mod sata_sil24 sata_nv sata_mv sata_via`),
		"virtio": words(`virtio_blk virtio_scsi sd_mod virtio_pci virtio_mmio`),
		"scsi": words(`sd_mod ses mpt3sas mptspi mptsas vmw_pvscsi hv_storvsc xen_blkfront sym53c8xx aic7xxx aic79xx pm80xx mvsas isci
			qla2xxx lpfc bfa fnic`),
		"usb":  words(`xhci_pci ehci_pci ohci_pci uhci_hcd usb_storage uas sd_mod`),
		"raid": words(`megaraid_sas megaraid_mbox mpt3sas mpi3mr aacraid hpsa smartpqi arcmsr 3w_9xxx 3w_sas cciss ips stex hptiop sd_mod`),
		"mmc":  words(`mmc_block sdhci_pci sdhci_acpi rtsx_pci_sdmmc`),
	}
	networkClasses = map[string][]string{
		"virtio": words(`virtio_net virtio_pci virtio_mmio`),
		"cloud":  words(`virtio_net virtio_pci ena gve hv_netvsc vmxnet3 xen_netfront mana ixgbevf iavf mlx5_core mlx4_en`),
		"server": words(`igb igc e1000 e1000e ixgbe ixgbevf i40e iavf ice fm10k idpf
			tg3 bnx2 bnx2x bnxt_en mlx4_core mlx4_en mlx5_core mlxfw qede qed qlcnic netxen_nic be2net cxgb3 cxgb4 enic sfc sfc_siena
			nfp atlantic ionic hinic ena atl1c alx r8169 forcedeth sky2 skge 8139cp 8139too vmxnet3 hv_netvsc xen_netfront virtio_net virtio_pci`),
		"usb": words(`xhci_pci ehci_pci r8152 ax88179_178a asix cdc_ether cdc_ncm smsc95xx lan78xx`),
	}
)

func words(s string) []string { return strings.Fields(s) }

// StorageClasses and NetworkClasses return the names of the classes, sorted.
func StorageClasses() []string { return slices.Sorted(maps.Keys(storageClasses)) }

// NetworkClasses returns the names of the classes of network drivers, sorted.
func NetworkClasses() []string { return slices.Sorted(maps.Keys(networkClasses)) }

// Wanted returns the names that classes stand for and the kernel has, beside the
// base that every environment carries.
func (k *Kernel) Wanted(storage, network []string) []string {
	var out []string
	add := func(names []string) {
		for _, name := range names {
			if k.Has(name) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	add(base)
	for _, class := range storage {
		add(storageClasses[class])
	}
	for _, class := range network {
		add(networkClasses[class])
	}
	return out
}
