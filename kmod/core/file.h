/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _SM_FILE_H
#define _SM_FILE_H

#include <linux/fs.h>

extern const struct file_operations sm_file_fops;

#endif /* _SM_FILE_H */
