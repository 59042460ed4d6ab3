//! A vhost-user virtio-fs server confined to one shared tree.

fn main() {}
