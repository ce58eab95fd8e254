// SPDX-License-Identifier: GPL-2.0
/*
 * Sending on what was received, for Python: RingConnection.forward(), if nothing of the connection
 * waits.
 */
#include "_fast.h"

static PyObject *name_view, *name_write;

/* Have the connection write what its ring has not taken of a segment. */
static bool write_rest(PyObject *connection, struct segment *segment, Py_ssize_t taken,
		       Py_ssize_t len)
{
	PyObject *view = PyObject_GetAttr((PyObject *)segment, name_view);
	PyObject *rest = view ? smf_rest_of(view, taken, len) : NULL;
	PyObject *done = rest ? PyObject_CallMethodOneArg(connection, name_write, rest) : NULL;

	Py_XDECREF(view);
	Py_XDECREF(rest);
	Py_XDECREF(done);
	return done;
}

/* Write the payload of a segment that is a copy itself, and release it.  False with an exception. */
static bool forward_copy(PyObject *connection, struct outlet *to, struct segment *segment)
{
	Py_buffer payload;
	Py_ssize_t taken, len;

	if (smf_get_payload(segment, &payload))
		return false;
	taken = smf_put(to, &payload);
	len = payload.len;
	PyBuffer_Release(&payload);
	return (taken == len || write_rest(connection, segment, taken, len)) &&
	       smf_release_view(segment);
}

static PyObject *connection_forward(PyObject *method, PyObject *const *args, size_t nargsf,
				    PyObject *names)
{
	bool is_usual = PyVectorcall_NARGS(nargsf) == 2 && !names;
	struct outlet *to = is_usual ? smf_usual_outlet(args[0]) : NULL;
	int done = 0;

	if (to && Py_IS_TYPE(args[1], &smf_segment_type))
		done = forward_copy(args[0], to, (struct segment *)args[1]) ? 1 : -1;
	else if (to && Py_IS_TYPE(args[1], &smf_lent_type))
		done = smf_forward_lent((struct segment *)args[1], to);
	if (!done)
		return PyObject_Vectorcall(((struct smf_method *)method)->general, args, nargsf,
					   names);
	return done < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(usual_forward_doc,
"usual_forward(forward)\n"
"\n"
"Decorate RingConnection.forward(): C sends segments on through a connection of which nothing waits.");

static PyObject *usual_forward(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, connection_forward, smf_learn_nothing);
}

static PyMethodDef functions[] = {
	{ "usual_forward", usual_forward, METH_O, usual_forward_doc },
	{ 0 }
};

int smf_init_forward(PyObject *module)
{
	const struct smf_name names[] = {
		{ "view", &name_view },
		{ "write", &name_write },
		{ 0 }
	};

	return smf_intern_names(names) ? -1 : PyModule_AddFunctions(module, functions);
}
