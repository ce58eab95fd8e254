// SPDX-License-Identifier: GPL-2.0
/*
 * The extension module stackmap._fast: the work for every message, for Python.
 *
 * Each of the other files has one part of it.
 */
#include "_fast.h"

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "stackmap._fast",
	.m_doc = PyDoc_STR("Segments, and what an exchange on rings does for each."),
	.m_size = -1,
};

PyObject *smf_import(const char *module, const char *name)
{
	PyObject *imported = PyImport_ImportModule(module);
	PyObject *found = imported ? PyObject_GetAttrString(imported, name) : NULL;

	Py_XDECREF(imported);
	return found;
}

PyMODINIT_FUNC PyInit__fast(void)
{
	PyObject *self = PyModule_Create(&module);

	if (!self)
		return NULL;
	if (PyType_Ready(&smf_method_type) || smf_init_segment(self) || smf_init_lent(self) ||
	    smf_init_exchange(self) || smf_init_write(self) || smf_init_forward(self) ||
	    smf_init_transport(self) || smf_init_turn(self) || smf_init_callback(self)) {
		Py_DECREF(self);
		return NULL;
	}
	return self;
}
