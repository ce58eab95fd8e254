// SPDX-License-Identifier: GPL-2.0
/*
 * Callbacks of stackmap.aio's event loop: scheduled with call_soon(), and run.
 *
 * Such a callback wakes the task of a stream for each message.
 */
#include "_fast.h"

/* A subclass of asyncio.Handle, and where its instances have what is set here. */
static struct {
	PyTypeObject *type;
	Py_ssize_t callback, args, cancelled, loop, traceback, repr, context;
} handle;

static PyObject *name_closed, *name_debug, *name_ready, *name_append, *name_failed;

static PyObject *make_handle(PyObject *loop, PyObject *const *args, Py_ssize_t nargs,
			     PyObject *context)
{
	PyObject *self = handle.type->tp_alloc(handle.type, 0), *rest = PyTuple_New(nargs - 1);

	context = context == Py_None ? PyContext_CopyCurrent() : Py_NewRef(context);
	if (!self || !rest || !context) {
		Py_XDECREF(self);
		Py_XDECREF(rest);
		Py_XDECREF(context);
		return NULL;
	}
	for (Py_ssize_t i = 1; i < nargs; i++)
		PyTuple_SET_ITEM(rest, i - 1, Py_NewRef(args[i]));
	smf_set_slot(self, handle.callback, Py_NewRef(args[0]));
	smf_set_slot(self, handle.args, rest);
	smf_set_slot(self, handle.cancelled, Py_NewRef(Py_False));
	smf_set_slot(self, handle.loop, Py_NewRef(loop));
	smf_set_slot(self, handle.traceback, Py_NewRef(Py_None));
	smf_set_slot(self, handle.repr, Py_NewRef(Py_None));
	smf_set_slot(self, handle.context, context);
	return self;
}

/* Whether an attribute of the loop is False; if not, and for want of it, Python has to see to it. */
static bool is_false(PyObject *loop, PyObject *name)
{
	PyObject *value = PyObject_GetAttr(loop, name);

	if (!value)
		PyErr_Clear();
	Py_XDECREF(value);
	return value == Py_False;
}

/* The context of a call that names nothing but that; NULL if it does. */
static PyObject *context_of(PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
	if (!names || !PyTuple_GET_SIZE(names))
		return Py_None;
	if (PyTuple_GET_SIZE(names) != 1 ||
	    PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "context"))
		return NULL;
	return args[nargs];
}

static PyObject *loop_call_soon(PyObject *method, PyObject *const *args, size_t nargsf,
				PyObject *names)
{
	Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
	PyObject *context = context_of(args, nargs, names);
	PyObject *self, *ready, *done;

	if (nargs < 2 || !context || !handle.type || !is_false(args[0], name_closed) ||
	    !is_false(args[0], name_debug))
		return PyObject_Vectorcall(((struct smf_method *)method)->general, args, nargsf,
					   names);
	self = make_handle(args[0], args + 1, nargs - 1, context);
	ready = self ? PyObject_GetAttr(args[0], name_ready) : NULL;
	done = ready ? PyObject_CallMethodOneArg(ready, name_append, self) : NULL;
	Py_XDECREF(ready);
	if (!done)
		Py_CLEAR(self);
	Py_XDECREF(done);
	return self;
}

static PyObject *handle_run(PyObject *method, PyObject *const *args, size_t nargsf,
			    PyObject *names)
{
	PyObject *self, *context, *callback, *arguments, *result = NULL;

	if (PyVectorcall_NARGS(nargsf) != 1 || names || !Py_IS_TYPE(args[0], handle.type) ||
	    smf_slot(args[0], handle.cancelled) != Py_False)
		return PyObject_Vectorcall(((struct smf_method *)method)->general, args, nargsf,
					   names);
	self = args[0];
	context = Py_NewRef(smf_slot(self, handle.context));
	callback = Py_NewRef(smf_slot(self, handle.callback));	/* it may cancel its handle */
	arguments = Py_NewRef(smf_slot(self, handle.args));
	if (!PyContext_Enter(context)) {
		result = PyObject_Vectorcall(callback, &PyTuple_GET_ITEM(arguments, 0),
					     PyTuple_GET_SIZE(arguments), NULL);
		if (PyContext_Exit(context))
			Py_CLEAR(result);
	}
	Py_DECREF(arguments);
	Py_DECREF(callback);
	Py_DECREF(context);
	return result ? result : smf_report(self, name_failed, smf_take_error());
}

static int learn_handle(PyTypeObject *type)
{
	const struct smf_slot slots[] = {
		{ "_callback", &handle.callback },
		{ "_args", &handle.args },
		{ "_cancelled", &handle.cancelled },
		{ "_loop", &handle.loop },
		{ "_source_traceback", &handle.traceback },
		{ "_repr", &handle.repr },
		{ "_context", &handle.context },
		{ 0 }
	};

	if (smf_find_slots(type, slots))
		return -1;
	Py_XSETREF(handle.type, (PyTypeObject *)Py_NewRef(type));
	return 0;
}

PyDoc_STRVAR(usual_call_soon_doc,
"usual_call_soon(call_soon)\n"
"\n"
"Decorate EventLoop.call_soon(): C makes the handle, unless the loop is closed or in debug mode.");

static PyObject *usual_call_soon(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, loop_call_soon, smf_learn_nothing);
}

PyDoc_STRVAR(usual_run_doc,
"usual_run(run)\n"
"\n"
"Decorate _run() of the class whose instances call_soon() returns: C calls the callback.");

static PyObject *usual_run(PyObject *module, PyObject *general)
{
	(void)module;
	return smf_make_method(general, handle_run, learn_handle);
}

static PyMethodDef functions[] = {
	{ "usual_call_soon", usual_call_soon, METH_O, usual_call_soon_doc },
	{ "usual_run", usual_run, METH_O, usual_run_doc },
	{ 0 }
};

int smf_init_callback(PyObject *module)
{
	const struct smf_name names[] = {
		{ "_closed", &name_closed },
		{ "_debug", &name_debug },
		{ "_ready", &name_ready },
		{ "append", &name_append },
		{ "_failed", &name_failed },
		{ 0 }
	};

	return smf_intern_names(names) ? -1 : PyModule_AddFunctions(module, functions);
}
