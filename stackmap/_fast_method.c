// SPDX-License-Identifier: GPL-2.0
/* Methods of Python classes that are C in the usual case; see _fast.h. */
#include "_fast.h"

#include <structmember.h>

PyObject *smf_make_method(PyObject *general, vectorcallfunc call, int (*learn)(PyTypeObject *owner))
{
	struct smf_method *self = PyObject_GC_New(struct smf_method, &smf_method_type);

	if (!self)
		return NULL;
	self->call = call;
	self->general = Py_NewRef(general);
	self->learn = learn;
	PyObject_GC_Track(self);
	return (PyObject *)self;
}

/*
 * Have the Python method do what C has left of its argument: None for nothing, NULL for an exception.
 * Takes that over.
 */
PyObject *smf_finish_in_python(PyObject *general, PyObject *object, PyObject *left)
{
	PyObject *result;

	if (!left || left == Py_None)
		return left;
	result = PyObject_CallFunctionObjArgs(general, object, left, NULL);
	Py_DECREF(left);
	return result;
}

int smf_find_slots(PyTypeObject *owner, const struct smf_slot *slots)
{
	for (; slots->name; slots++) {
		PyObject *slot = PyObject_GetAttrString((PyObject *)owner, slots->name);

		if (!slot)
			return -1;
		if (!Py_IS_TYPE(slot, &PyMemberDescr_Type)) {
			PyErr_Format(PyExc_TypeError, "%R of %R is not one of __slots__", slot,
				     owner);
			Py_DECREF(slot);
			return -1;
		}
		*slots->offset = ((PyMemberDescrObject *)slot)->d_member->offset;
		Py_DECREF(slot);
	}
	return 0;
}

/* For a method whose class another one has learnt, or that looks at none. */
int smf_learn_nothing(PyTypeObject *owner)
{
	(void)owner;
	return 0;
}

int smf_intern_names(const struct smf_name *names)
{
	for (; names->name; names++) {
		*names->string = PyUnicode_InternFromString(names->name);
		if (!*names->string)
			return -1;
	}
	return 0;
}

/* Raise an error that a Python function has made, or its failure to.  Takes it over. */
PyObject *smf_raise(PyObject *error)
{
	if (error)
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	Py_XDECREF(error);
	return NULL;
}

/* Take the current exception, as an except clause does. */
PyObject *smf_take_error(void)
{
	PyObject *type, *error, *traceback;

	PyErr_Fetch(&type, &error, &traceback);
	PyErr_NormalizeException(&type, &error, &traceback);
	if (traceback)
		PyException_SetTraceback(error, traceback);
	Py_XDECREF(type);
	Py_XDECREF(traceback);
	return error;
}

/* No loop may catch it. */
bool smf_ends_program(PyObject *error)
{
	return PyErr_GivenExceptionMatches(error, PyExc_SystemExit) ||
	       PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt);
}

/* Give an error to a method of an object, or raise it again if it ends the program.  Takes it over. */
PyObject *smf_report(PyObject *object, PyObject *name, PyObject *error)
{
	PyObject *result = NULL;

	if (smf_ends_program(error))
		PyErr_SetObject((PyObject *)Py_TYPE(error), error);
	else
		result = PyObject_CallMethodOneArg(object, name, error);
	Py_DECREF(error);
	return result;
}

static int method_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(((struct smf_method *)object)->general);
	return 0;
}

static int method_clear(PyObject *object)
{
	Py_CLEAR(((struct smf_method *)object)->general);
	return 0;
}

static void method_dealloc(PyObject *object)
{
	PyObject_GC_UnTrack(object);
	method_clear(object);
	PyObject_GC_Del(object);
}

static PyObject *method_get(PyObject *object, PyObject *instance, PyObject *owner)
{
	(void)owner;
	return instance ? PyMethod_New(object, instance) : Py_NewRef(object);
}

/* Its name, its annotations and so on are the Python method's. */
static PyObject *method_getattro(PyObject *object, PyObject *name)
{
	PyObject *found = PyObject_GenericGetAttr(object, name);

	if (found || !PyErr_ExceptionMatches(PyExc_AttributeError))
		return found;
	PyErr_Clear();
	return PyObject_GetAttr(((struct smf_method *)object)->general, name);
}

static PyObject *method_set_name(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
	if (nargs != 2 || !PyType_Check(args[0])) {
		PyErr_SetString(PyExc_TypeError, "__set_name__() takes a class and a name");
		return NULL;
	}
	if (((struct smf_method *)object)->learn((PyTypeObject *)args[0]))
		return NULL;
	Py_RETURN_NONE;
}

static PyObject *method_doc(PyObject *object, void *ignored)
{
	(void)ignored;
	return PyObject_GetAttrString(((struct smf_method *)object)->general, "__doc__");
}

static PyMethodDef method_methods[] = {
	{ "__set_name__", (PyCFunction)(void (*)(void))method_set_name, METH_FASTCALL, NULL },
	{ 0 }
};

static PyMemberDef method_members[] = {
	{ "__wrapped__", T_OBJECT_EX, offsetof(struct smf_method, general), READONLY, NULL },
	{ 0 }
};

static PyGetSetDef method_getset[] = {
	{ "__doc__", method_doc, NULL, NULL, NULL },
	{ 0 }
};

PyTypeObject smf_method_type = {
	PyVarObject_HEAD_INIT(NULL, 0)
	.tp_name = "stackmap._fast.Method",
	.tp_basicsize = sizeof(struct smf_method),
	.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
		    Py_TPFLAGS_METHOD_DESCRIPTOR,
	.tp_vectorcall_offset = offsetof(struct smf_method, call),
	.tp_call = PyVectorcall_Call,
	.tp_traverse = method_traverse,
	.tp_clear = method_clear,
	.tp_dealloc = method_dealloc,
	.tp_descr_get = method_get,
	.tp_getattro = method_getattro,
	.tp_methods = method_methods,
	.tp_members = method_members,
	.tp_getset = method_getset,
};
