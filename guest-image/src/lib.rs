//! Guest kernel and initramfs: built, packed, described.
