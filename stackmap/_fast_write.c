// SPDX-License-Identifier: GPL-2.0
/*
 * Writing to connections on rings: into transmit slots, if nothing of the connection waits.
 */
#include "_fast.h"

#include <structmember.h>

#include "_ring.h"
#include "_ring_hot.h"

/* Bytes that one write takes.  A program's makes two at most before its first sync. */
#define WRITE_MAX (64 * 4096)

struct ring_connection smf_ring_connection;

static PyObject *outlet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "path", "id", NULL };
	struct outlet *self;
	PyObject *path;
	unsigned int id;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!I:Outlet", names, &smf_fast_path_type, &path,
					 &id))
		return NULL;
	self = (struct outlet *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->path = (struct fast_path *)Py_NewRef(path);
	self->id = id;
	return (PyObject *)self;
}

static int outlet_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(((struct outlet *)object)->path);
	return 0;
}

static int outlet_clear(PyObject *object)
{
	Py_CLEAR(((struct outlet *)object)->path);
	return 0;
}

static void outlet_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	outlet_clear(object);
	PyObject_GC_Del(object);
}

/* Copy data into the transmit ring, and count it.  Returns the number of bytes taken. */
size_t smf_put(struct outlet *self, const Py_buffer *data)
{
	size_t taken = smr_write(self->path->pair, self->id, data->buf,
				 data->len < WRITE_MAX ? data->len : WRITE_MAX);

	self->written += taken;
	return taken;
}

PyDoc_STRVAR(outlet_write_doc,
"write(data)\n"
"\n"
"Copy data into the transmit ring, and count it.  Returns None if it took all, or the number of\n"
"bytes taken.");

static PyObject *outlet_write(PyObject *object, PyObject *argument)
{
	struct outlet *self = (struct outlet *)object;
	Py_buffer data;
	size_t taken;
	bool all;

	if (!self->path || !smf_is_open(self->path) ||
	    PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE))
		return NULL;
	taken = smf_put(self, &data);
	all = taken == (size_t)data.len;
	PyBuffer_Release(&data);
	return all ? Py_NewRef(Py_None) : PyLong_FromSize_t(taken);
}

PyDoc_STRVAR(outlet_report_doc,
"report()\n"
"\n"
"Ask for a report of the last slot written.  False if all slots were handed to TCP already.");

static PyObject *outlet_report(PyObject *object, PyObject *ignored)
{
	struct outlet *self = (struct outlet *)object;

	(void)ignored;
	if (!self->path || !smf_is_open(self->path))
		return NULL;
	return PyBool_FromLong(smr_report(self->path->pair, self->id));
}

static PyMethodDef outlet_methods[] = {
	{ "write", outlet_write, METH_O, outlet_write_doc },
	{ "report", outlet_report, METH_NOARGS, outlet_report_doc },
	{ 0 }
};

static PyMemberDef outlet_members[] = {
	{ "written", T_ULONGLONG, offsetof(struct outlet, written), 0,
	  "Bytes written.  Bytes that are written again can be subtracted." },
	{ 0 }
};

PyTypeObject smf_outlet_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap._fast.Outlet",
	.tp_basicsize = sizeof(struct outlet),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
	.tp_doc = PyDoc_STR("Where one connection writes to a pair of rings, under its id."),
	.tp_new = outlet_new,
	.tp_traverse = outlet_traverse,
	.tp_clear = outlet_clear,
	.tp_dealloc = outlet_dealloc,
	.tp_methods = outlet_methods,
	.tp_members = outlet_members,
};

/* The bytes of data from one on, of all its len. */
PyObject *smf_rest_of(PyObject *data, Py_ssize_t taken, Py_ssize_t len)
{
	PyObject *view = PyMemoryView_FromObject(data);
	PyObject *octets = view ? PyObject_CallMethod(view, "cast", "s", "B") : NULL;
	PyObject *rest = octets ? PySequence_GetSlice(octets, taken, len) : NULL;

	Py_XDECREF(octets);
	Py_XDECREF(view);
	return rest;
}

/* A connection's outlet, borrowed, if it is on a ring, is well, and nothing of it waits; or NULL. */
struct outlet *smf_usual_outlet(PyObject *connection)
{
	struct outlet *outlet;

	if (!Py_IS_TYPE(connection, smf_ring_connection.type) ||
	    smf_slot(connection, smf_ring_connection.shutdown) != Py_False ||
	    !smf_is_zero(smf_slot(connection, smf_ring_connection.failure)) ||
	    PyObject_Size(smf_slot(connection, smf_ring_connection.waiting)))
		return NULL;
	outlet = (struct outlet *)smf_slot(connection, smf_ring_connection.outlet);
	return outlet->path && outlet->path->pair && outlet->path->pair->fd >= 0 ? outlet : NULL;
}

/*
 * Write to a connection whose outlet is usual.  Returns None if that took all of data, or else what
 * is left: part of it, or data itself.
 */
PyObject *smf_write_as_usual(PyObject *connection, PyObject *data)
{
	struct outlet *outlet = smf_usual_outlet(connection);
	Py_buffer buffer;
	Py_ssize_t taken, len;

	if (!outlet)
		return Py_NewRef(data);
	if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)) {
		PyErr_Clear();	/* whoever is left with data finds out */
		return Py_NewRef(data);
	}
	len = buffer.len;
	taken = smf_put(outlet, &buffer);
	PyBuffer_Release(&buffer);
	return taken == len ? Py_NewRef(Py_None) : smf_rest_of(data, taken, len);
}

/* The parts from i on, with @rest in the place of part i, of which the beginning is written. */
static PyObject *parts_left(PyObject *parts, Py_ssize_t i, PyObject *rest)
{
	PyObject *left = PySequence_List(parts);

	if (!left || PyList_SetSlice(left, 0, i, NULL)) {
		Py_XDECREF(left);
		Py_DECREF(rest);
		return NULL;
	}
	PyList_SetItem(left, 0, rest);
	return left;
}

/*
 * Write the parts of a list or tuple one behind the other, as smf_write_as_usual() does: small ones
 * share a slot.  Returns None if that took all, or else a list of what is left.
 */
PyObject *smf_write_all_as_usual(PyObject *connection, PyObject *parts)
{
	for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(parts); i++) {
		PyObject *left = smf_write_as_usual(connection, PySequence_Fast_GET_ITEM(parts, i));

		if (!left)
			return NULL;
		if (left != Py_None)
			return parts_left(parts, i, left);
		Py_DECREF(left);
	}
	Py_RETURN_NONE;
}

static PyObject *connection_write(PyObject *method, PyObject *const *args, size_t nargsf,
				  PyObject *names)
{
	PyObject *general = ((struct smf_method *)method)->general;

	if (PyVectorcall_NARGS(nargsf) != 2 || names)
		return PyObject_Vectorcall(general, args, nargsf, names);
	return smf_finish_in_python(general, args[0], smf_write_as_usual(args[0], args[1]));
}

static int learn_connection(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_waiting", &smf_ring_connection.waiting },
		{ "_shutdown", &smf_ring_connection.shutdown },
		{ "_outlet", &smf_ring_connection.outlet },
		{ "_failure", &smf_ring_connection.failure },
		{ "_deaf", &smf_ring_connection.deaf },
		{ "_copy_max", &smf_ring_connection.copy_max },
		{ 0 }
	};

	if (smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(smf_ring_connection.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_connection_write_doc,
"usual_connection_write(write)\n"
"\n"
"Decorate RingConnection.write(): C writes to a connection of which nothing waits.");

static PyObject *usual_connection_write(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, connection_write, learn_connection);
}

static PyMethodDef functions[] = {
	{ "usual_connection_write", usual_connection_write, METH_O, usual_connection_write_doc },
	{ 0 }
};

int smf_init_write(PyObject *module)
{
	return PyModule_AddType(module, &smf_outlet_type) ? -1 : PyModule_AddFunctions(module, functions);
}
