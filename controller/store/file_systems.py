"""File systems on which SQLite's write-ahead log loses writes: those of other hosts."""

from __future__ import annotations

from pathlib import Path

NETWORK_FILE_SYSTEMS = frozenset({
    "nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "afs", "beegfs",
    "gpfs", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "wekafs", "ocfs2", "gfs2", "pvfs2", "orangefs", "davfs",
    "coda",
})  # fmt: skip
# All others in user space may be on another host: their number has no end, that of the local ones has.
LOCAL_IN_USER_SPACE = frozenset(
    {"fuse.ntfs-3g", "fuse.ext2", "fuse.exfat", "fuse.lxcfs", "fuse.fuse-overlayfs"}
)


def is_on_network(kind: str) -> bool:
    """Whether a file system of this type may be on another host."""
    is_foreign = kind.startswith("fuse.") and kind not in LOCAL_IN_USER_SPACE
    return kind in NETWORK_FILE_SYSTEMS or is_foreign


def file_system(folder: Path, mounts: Path) -> str:
    """File system type of `folder`, from a file like /proc/self/mounts; '' when unknown."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    longest, found = "", ""
    for line in lines:
        _, mount_point, kind, *_ = line.split(" ")
        mount_point = mount_point.replace("\\040", " ")
        if folder.is_relative_to(mount_point) and len(mount_point) >= len(longest):
            longest, found = mount_point, kind
    return found
